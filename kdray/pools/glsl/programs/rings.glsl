// Targets: rings of random width around a few centres.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.7, 2.2);
    vec4 n = nearest(p, 0.6);
    float far = n.x * between(0, 4.0, 9.0) - 0.5 * iTime, ring = floor(far), f = far - ring;
    vec3 own = mix(dice3(vec2(ring, dice(n.zw) * 50.0)), palette(0.21 * ring + dice(n.zw)), random(1));
    colour = vec4(own * mix(1.0, 0.5 + f, random(2)), 1);
}
