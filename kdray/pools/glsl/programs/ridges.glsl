// Sharp ridges, as of mountains seen from above.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.6, 2.0);
    float sum = 0.0, weight = 0.5, before = 1.0;
    for (int k = 0; k < 5; k++) {
        float ridge = 1.0 - abs(2.0 * gradient(p + 0.1 * iTime * float(k)));
        ridge *= ridge;
        sum += weight * ridge * before;
        before = ridge;
        weight *= 0.5;
        p = turn(0.6) * p * 2.1 + 3.1;
    }
    colour = vec4(mix(palette(sum), vec3(sum), random(0)) * (0.4 + sum), 1);
}
