// A map: lines of equal height of simplex noise.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.35, 1.0);
    float h = simplex(p + 0.1 * iTime) + 0.4 * simplex(2.0 * p);
    float bands = between(0, 1.5, 3.5), width = between(1, 0.15, 0.4);
    float line = abs(fract(h * bands) - 0.5) * 2.0;
    vec3 ground = palette(0.5 * h);
    colour = vec4(mix(ground, ink(2), smoothstep(width + 0.25, width, line)), 1);
}
